// Package fast is what the program that the kubelet starts does first: where an agent is named in the environment, it copies the kubelet's request to the agent and the agent's answer back, and
// ends the process before anything heavy is initialised. Its init runs before main, and before nearly all other packages, since it imports nothing: Go initialises packages in the order
// of their import paths once what they import is initialised. It knows the frames that pass over the agent's socket, and neither what a request or an answer says nor any other package of ours.
//
// Whatever does not come off leaves a reason in Early, and main does the work itself. A program that links this package is the exec plugin for as long as its arguments are: none, or only those that
// ParseArguments understands.
package fast
