package store

import (
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
)

// Page is a part of a list.
type Page[T any] struct {
	Items    []*T   // shared with all readers: who wants to change one makes a copy
	Next     string // what to give as after for the next page; empty: this is the last one
	Revision int64  // of the state that was read
}

// GetCached returns the resource with this ID as the cache has it. It is shared with all readers: who wants to change it
// makes a copy.
func GetCached[T any, P resource[T]](c *Cache, h auth.Handle, project, id string) (*T, error) {
	kind := P(new(T)).ResourceKind()
	if err := h.Check(auth.Read, kind, project); err != nil {
		return nil, err
	}
	item, ok := c.Get(Key(kind, project, id))
	if !ok {
		return nil, NoSuch(kind, project, id)
	}
	r, err := Decoded[T, P](item)
	if err != nil {
		return nil, err
	}
	return withBeat(c, r), nil
}

// FindCached is GetCached by name or ID. The cache must hold the claims, too.
func FindCached[T any, P resource[T]](c *Cache, h auth.Handle, project, nameOrID string) (*T, error) {
	kind := P(new(T)).ResourceKind()
	if err := h.Check(auth.Read, kind, project); err != nil {
		return nil, err
	}
	id := nameOrID
	if !api.IsUUID(id) {
		claim, ok := c.Get(NameClaim(kind, project, nameOrID))
		if !ok {
			return nil, NoSuch(kind, project, nameOrID)
		}
		id = string(claim.Value)
	}
	return GetCached[T, P](c, h, project, id)
}

// ListCached returns up to limit resources of a kind in a project (every project: "*") that keep wants (nil: all), in key
// order from behind after, which is the Next of the page before or empty; limit 0 means no limit.
func ListCached[T any, P resource[T]](c *Cache, h auth.Handle, project, after string, limit int, keep func(*T) bool) (Page[T], error) {
	kind := P(new(T)).ResourceKind()
	if err := h.Check(auth.Read, kind, project); err != nil {
		return Page[T]{}, err
	}
	prefix := Prefix(kind, project)
	if project == "*" {
		prefix = KindPrefix(kind)
	}
	if after != "" {
		after = prefix + after
	}
	var bad error
	want := func(item *Item) bool {
		r, err := Decoded[T, P](item)
		if err != nil {
			bad = err
			return false
		}
		return keep(r)
	}
	if keep == nil {
		want = nil
	}
	items, more, revision := c.List(prefix, after, limit, want)
	page := Page[T]{Items: make([]*T, 0, len(items)), Revision: revision}
	for _, item := range items {
		r, err := Decoded[T, P](item)
		if err != nil {
			return Page[T]{}, err
		}
		page.Items = append(page.Items, withBeat(c, r))
	}
	if more {
		page.Next = strings.TrimPrefix(items[len(items)-1].Key, prefix)
	}
	return page, bad
}
