"""A page to compose on, in the browser: python -m songci.page."""
