"""Reading the web for evidence, on a short lead: public addresses only, robots respected, everything bounded."""
