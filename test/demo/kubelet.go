package main

import (
	"cmp"
	"slices"

	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/broker/kubelet"
)

// try is one credential that the kubelet would pull with.
type try struct {
	key string
	login
}

// inKubeletsOrder is what the kubelet would pull an image with, in its order: every key that matches the image, by index in reverse byte order, so that a longer path comes first.
func inKubeletsOrder(r kubelet.Response, img string) ([]try, error) {
	type indexed struct {
		try
		index string
	}
	var found []indexed
	for key, auth := range r.Auth {
		if !image.KeyMatches(key, img) {
			continue
		}
		index, err := image.IndexKey(key)
		if err != nil {
			return nil, err
		}
		found = append(found, indexed{try{key, login{auth.Username, string(auth.Password)}}, index})
	}
	slices.SortFunc(found, func(a, b indexed) int { return cmp.Compare(b.index, a.index) })
	tries := make([]try, len(found))
	for i, f := range found {
		tries[i] = f.try
	}
	return tries, nil
}
