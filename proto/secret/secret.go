// Package secret has the one string type that cannot be printed. Whoever needs the value converts it on purpose, with string(s).
package secret

import (
	"fmt"
	"log/slog"
)

// Secret is a password, token or key. Formatting it with any verb, logging it with slog or encoding it as JSON or text gives a
// fixed mask. The zero value is the empty secret, which prints as nothing, so that a missing one is seen.
type Secret string

// Mask is what a secret prints as.
const Mask = "[redacted]"

func (s Secret) mask() string {
	if s == "" {
		return ""
	}
	return Mask
}

// Format implements fmt.Formatter: every verb and flag prints the mask.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.mask())) }

// String implements fmt.Stringer for callers that do not go through fmt.
func (s Secret) String() string { return s.mask() }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.mask() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.mask()) }

// MarshalText implements encoding.TextMarshaler, which encoding/json uses too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.mask()), nil }
