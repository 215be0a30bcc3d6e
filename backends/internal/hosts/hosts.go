// Package hosts judges names of hosts and other things that become part of a URL, and the patterns by which settings name registries. It knows none.
package hosts

import (
	"net/netip"
	"path"
	"slices"
	"strings"
)

// ConsistsOf reports whether s has from least to most bytes, all of them lower case ASCII letters, digits, or in also. (Regular expressions would have to be compiled in each process.)
func ConsistsOf(s, also string, least, most int) bool {
	return len(s) >= least && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(also, r)
	})
}

// ValidDomain takes a domain in lower case, of two labels at least.
func ValidDomain(s string) bool {
	labels := strings.Split(s, ".")
	return len(s) <= 253 && len(labels) > 1 && !slices.ContainsFunc(labels, func(label string) bool { return !ConsistsOf(label, "-", 1, 63) })
}

// ValidPattern takes a domain as ValidDomain does, of three labels at least; a "*" may stand in the first label only, so that no pattern is a whole domain of others.
func ValidPattern(s string) bool {
	first, rest, _ := strings.Cut(s, ".")
	return ConsistsOf(first, "-*", 1, 63) && ValidDomain(rest)
}

// Match says whether one of the patterns is for the host, label by label.
func Match(patterns []string, host string) bool {
	for _, pattern := range patterns {
		if ok, err := path.Match(pattern, host); err == nil && ok && strings.Count(pattern, ".") == strings.Count(host, ".") {
			return true
		}
	}
	return false
}

// IsNear says that plain HTTP to the host stays on this machine, or on the link between it and its hypervisor.
func IsNear(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	ip = ip.Unmap()
	return err == nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast())
}

// IsLoopback says that what is sent to the host does not leave this machine.
func IsLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// IsUUID takes a UUID in its usual form, upper or lower case (RFC 9562, section 4).
func IsUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		hyphen := i == 8 || i == 13 || i == 18 || i == 23
		if hyphen && r != '-' || !hyphen && !strings.ContainsRune("0123456789abcdefABCDEF", r) {
			return false
		}
	}
	return true
}
