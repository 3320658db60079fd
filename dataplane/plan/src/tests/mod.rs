mod fixture;
mod golden;
mod maglev;
mod resets;
mod rules;
