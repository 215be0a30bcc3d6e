//go:build !unix

package webidentity

import "io/fs"

// worldReadable: a Windows file's mode says nothing of its access control list.
func worldReadable(fs.FileInfo) bool { return false }
