// Package fast is what the program that the kubelet starts does first: where an agent is named in the environment, it copies the kubelet's request to the agent and the agent's answer back, and
// ends the process. A release begins here, before Go's runtime (begin_linux.go); what go install builds comes here from init, before main and nearly all other packages: Go initialises packages in
// the order of their import paths once what they import is initialised, and this one imports nothing. It knows the frames that pass over the agent's socket, and neither what a request or an answer says
// nor any other package of ours.
//
// Whatever does not come off leaves a reason in Early, and main does the work itself. A program that links this package is the exec plugin for as long as its arguments are: none, or only those that
// ParseArguments understands.
package fast
