package fast

import "unsafe"

// words are for texts that are made before there is a heap: why an agent did not answer. What is too long for them is cut off.
var (
	words [8 << 10]byte
	said  int // bytes of words that are in use
)

// join is parts put together. What + does wants a heap.
//
//go:noinline
func join(parts ...string) string {
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	var text []byte
	if running {
		text = make([]byte, n)
	} else {
		text = words[said:]
		text = text[:min(n, len(text))]
		said += len(text)
	}
	n = 0
	for _, part := range parts {
		n += copy(text[n:], part)
	}
	return view(text)
}

// view is b as a string. Nobody may write to b any more.
func view(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // G103: there may be no heap for a copy
}

func decimal(n int) string {
	if n < 0 {
		return join("-", decimal(-n))
	}
	var digits [20]byte
	at := len(digits)
	for {
		at--
		digits[at] = '0' + byte(n%10)
		if n /= 10; n == 0 {
			return join(view(digits[at:]))
		}
	}
}

// octal writes a mode as people write it: four digits.
func octal(mode uint16) string {
	digits := [4]byte{'0' + byte(mode>>9&7), '0' + byte(mode>>6&7), '0' + byte(mode>>3&7), '0' + byte(mode&7)}
	return join(view(digits[:]))
}
