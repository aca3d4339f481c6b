"""What SRVP is compared with."""
