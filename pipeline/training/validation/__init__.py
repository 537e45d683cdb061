"""What is measured on the validation part."""
