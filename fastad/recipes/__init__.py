"""The recipes that fastad ships, one TOML file each; `fastad.recipe` reads them."""
