"""Fixtures, fake servers and factories that several test modules share."""
