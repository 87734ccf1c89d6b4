//! Several hosts on one machine, with the real program, PostgreSQL and RabbitMQ on each, and faults between them.
//!
//! A *bed* is a switch and hosts in namespaces; a *cluster* is Quorate installed on a bed; a *load* writes through the
//! cluster address and remembers every acknowledgement. Needs root.

pub mod bed;
