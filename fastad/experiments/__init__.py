"""The experiments that fastad ships, one TOML file each; read by `fastad.experiment`."""
