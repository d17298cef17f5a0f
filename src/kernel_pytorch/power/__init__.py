"""Temperature and power of devices, power limits that save energy, and energy used."""
