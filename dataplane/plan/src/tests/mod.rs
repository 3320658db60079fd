mod fixture;
mod golden;
mod hooks;
mod maglev;
mod planner;
mod resets;
mod rules;
