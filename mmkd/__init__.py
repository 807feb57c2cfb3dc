"""mmkd distils big vision-language models into small ones that read an image as a handful of tokens."""

__version__ = "0.1.0"
