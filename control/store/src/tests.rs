mod examples;
mod memory;
mod objects;
mod payloads;
mod properties;
