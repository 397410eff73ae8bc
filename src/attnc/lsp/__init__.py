"""The language server: what an editor shows beside a spec. Needs neither torch nor a GPU."""
