package fast

// Attempt is what happened before main, for main to go on from.
type Attempt struct {
	// Tried says that an agent was asked, or its socket refused. Where it is false, main may still ask one that the configuration names.
	Tried  bool
	Socket string // the agent's, where Tried
	Reason string // why it did not answer, for a log
	Absent bool   // there is no agent, so that starting one makes sense
	// Stdin is what has been read of standard input already, at most a byte more than the largest request; StdinEnded: it is all there was. StdinOverdue: its end did not come in the time that there
	// is for it, and main need not wait that long again.
	Stdin                    []byte
	StdinEnded, StdinOverdue bool
	// Began is when the process's own code began, in nanoseconds of CLOCK_MONOTONIC; 0 where it is not known.
	Began int64
}

var attempt Attempt

// Early is what happened before main.
func Early() *Attempt { return &attempt }
