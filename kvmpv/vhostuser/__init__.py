"""vhost-user: how the VMM and a device's backend speak, both roles."""
