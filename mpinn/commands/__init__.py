"""What the commands of the program do, without their command line."""
