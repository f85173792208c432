"""What tenants do on a GPU: as scenarios write it (`models`), and as it runs (`drivers`)."""
