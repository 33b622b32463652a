"""The item table: look-up, sharding over devices, softmax, row-wise Adam."""
