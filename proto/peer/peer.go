// Package peer tells who is at the other end of a unix socket. It knows nothing of what is said over it.
package peer
