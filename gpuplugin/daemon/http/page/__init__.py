"""The status page at `/`: one HTML document, made on the server, that fetches nothing.

`view` says what is shown, `html` how; where it comes from is in `gather`.
"""
