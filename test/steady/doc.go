// Package steady watches over what the kubelet waits for: the built program where an agent answers. It proves that nothing heavy is initialised before the answer is there, that the answer is the agent's
// to the byte, and that neither the instructions in user space nor the page faults grow. None of that depends on the clock, so a busy machine changes nothing.
package steady
