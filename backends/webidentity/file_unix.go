//go:build unix

package webidentity

import "io/fs"

func worldReadable(info fs.FileInfo) bool { return info.Mode().Perm()&0o004 != 0 }
