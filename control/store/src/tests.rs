mod examples;
mod objects;
mod properties;
