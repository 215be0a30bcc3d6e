// Package faults shows, from outside and on Linux, what the built command does when something goes wrong: a backend, a wrapped provider or a credential helper that misbehaves, a machine
// that is out of something, a broker that is killed. And it looks for secrets wherever they do not belong. The misbehaviour itself is in ./misbehave.
package faults
