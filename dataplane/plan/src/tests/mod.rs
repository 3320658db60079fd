mod fixture;
mod golden;
mod maglev;
mod planner;
mod resets;
mod rules;
