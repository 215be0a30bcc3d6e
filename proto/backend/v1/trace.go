package backendv1

import "strings"

// TraceParentHeader is the gRPC metadata with which the broker tells the trace that a call belongs to: the header of that name in the W3C's Trace Context.
const TraceParentHeader = "traceparent"

// maxTraceParent is more than any version of the header has needed, in bytes.
const maxTraceParent = 256

// IsTraceParent says whether a value is one that Trace Context allows ("traceparent Header Field Values"): version, trace, parent and flags in hexadecimal digits. Version ff is none, and a later
// one than 00 may have more behind.
func IsTraceParent(value string) bool {
	version, rest, _ := strings.Cut(value, "-")
	trace, rest, _ := strings.Cut(rest, "-")
	parent, rest, _ := strings.Cut(rest, "-")
	flags, _, more := strings.Cut(rest, "-")
	return isHex(version, 2) && version != "ff" && isID(trace, 32) && isID(parent, 16) && isHex(flags, 2) &&
		(!more || version != "00" && len(value) <= maxTraceParent && !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }))
}

// isID says whether it is made of so many digits that are not all zero.
func isID(s string, digits int) bool { return isHex(s, digits) && strings.Trim(s, "0") != "" }

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}
