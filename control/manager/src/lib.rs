//! A manager's services: leader loops, dispatcher, CA server, control operations.
