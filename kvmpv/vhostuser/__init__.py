"""vhost-user: how a device's front end (a VMM) and its back end (a process) share virtqueues."""
