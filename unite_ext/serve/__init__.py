"""`unite serve`: an ensemble behind OpenAI's HTTP interface.

`app.create_app` makes the application, `server.serve` runs it. Needs `pip install 'unite_ext[serve]'`.
"""
