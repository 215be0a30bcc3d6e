// The API of the release whose folder this is: what is declared here stays. It has been written by `go test -update`, and never changes.
package secret

import (
	"fmt"
	"log/slog"
)

type Secret string

func (Secret) Format(f fmt.State, _ rune) { panic(0) }

func (Secret) String() string { panic(0) }

func (Secret) GoString() string { panic(0) }

func (Secret) LogValue() slog.Value { panic(0) }

func (Secret) MarshalText() ([]byte, error) { panic(0) }
