"""The library behind the scripts: they import it, and it never imports a script."""
