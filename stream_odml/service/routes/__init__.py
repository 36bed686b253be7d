"""The addresses of the API, one noun a module. Each reads a request, asks the Backend, writes JSON."""
