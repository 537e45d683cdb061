from .label_opener import LabelOpener as LabelOpener
