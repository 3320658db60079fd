mod fixture;
mod golden;
mod maglev;
mod rules;
