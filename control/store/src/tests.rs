mod examples;
mod memory;
mod objects;
mod properties;
