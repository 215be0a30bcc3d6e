package backendv1

import "regexp"

// TraceParentHeader is the gRPC metadata with which the broker tells the trace that a call belongs to: the header of that name in the W3C's Trace Context.
const TraceParentHeader = "traceparent"

// As in Trace Context, "traceparent Header Field Values": version ff is none, and a later version may have more behind a hyphen.
var traceParent = regexp.MustCompile(`^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}|([1-9a-f][0-9a-f]|0[1-9a-f])-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{1,200})?)$`)

var nobodysTrace = regexp.MustCompile(`^(ff|..-0{32}|..-.{32}-0{16})`)

// IsTraceParent says whether the value is one that Trace Context allows.
func IsTraceParent(value string) bool {
	return traceParent.MatchString(value) && !nobodysTrace.MatchString(value)
}
