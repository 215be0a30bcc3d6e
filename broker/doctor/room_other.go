//go:build !linux

package doctor

import "errors"

func (n Node) room(string) (bytes, files uint64, readOnly bool, err error) {
	return 0, 0, false, errors.ErrUnsupported
}

func (n Node) writable(string) error { return errors.ErrUnsupported }
