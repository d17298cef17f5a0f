"""Heat and power: which devices may work, which limit saves energy, what was used."""
