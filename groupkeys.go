package leasehold

import (
	"context"
	"errors"
	"fmt"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// keySets are the sets of keys with names that a member needs. The group's mu protects them.
type keySets struct {
	known     []string            // the keys that the member knows, sorted
	published []string            // the last set of these that others can read
	digest    string              // of the published set; "" before there is one
	dropped   []string            // what the published set has, and the member does not know any more
	byDigest  map[string][]string // sets of any member
	pages     map[string][]string // the first pages of sets that were not read to the end, by digest
}

// know says which keys the member knows, sorted, and publishes them for the others. It tries again until retrying ends.
func (g *group) know(ctx, retrying context.Context, keys []string) {
	if len(keys) == 0 {
		g.campaign.log.info("this member knows no keys, and works on none", "group", g.client.group)
	}
	digest := shards.Digest(keys)
	g.mu.Lock()
	keys = g.sets.addLocked(digest, keys)
	g.sets.known = keys
	g.sets.dropped = without(g.sets.published, keys)
	var gone []*keySession
	for _, sessions := range []map[string]*keySession{g.sessions, g.earlier} {
		for key, s := range sessions {
			if _, known := slices.BinarySearch(keys, key); !known {
				gone = append(gone, s)
			}
		}
	}
	g.mu.Unlock()
	for _, s := range gone {
		g.stop(s, ErrMoved)
	}
	if g.retry(retrying, g.delays.publish, func() error { return g.publish(ctx, digest, keys) }) != nil {
		return
	}
	g.mu.Lock()
	g.sets.published, g.sets.digest, g.sets.dropped = keys, digest, nil
	m := g.present
	if m != nil {
		m.owner.Know(digest)
	}
	g.mu.Unlock()
	if m != nil {
		m.tell()
	}
}

// without returns those of all that are not in some, which is sorted.
func without(all, some []string) (others []string) {
	for _, key := range all {
		if _, there := slices.BinarySearch(some, key); !there {
			others = append(others, key)
		}
	}
	return others
}

// republish publishes the keys again. It tries that every renew interval, until ctx ends.
func (g *group) republish(ctx context.Context) {
	for ctx.Err() == nil {
		g.mu.Lock()
		digest, keys := g.sets.digest, g.sets.published
		g.mu.Unlock()
		if digest == "" || g.publish(ctx, digest, keys) == nil {
			return
		}
		sleep(ctx, g.campaign.clock, g.campaign.options.renewInterval)
	}
}

// publish writes a set of keys for the others to read. It is there already if another member knows the same.
func (g *group) publish(ctx context.Context, digest string, keys []string) error {
	for i, page := range shards.Pages(keys) {
		_, err := g.client.create(ctx, "create keys", &coordinationv1.Lease{ObjectMeta: objectMeta(
			g.pageName(digest, i), keysAnnotation, page,
		)})
		if err != nil && conflicts(err) {
			err = g.mend(ctx, g.pageName(digest, i), page)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mend makes a page of keys that exists what it is to be, if somebody changed it. It may yet be deleted by an assigner
// that has found it to be of no use: the member publishes it again when others seem not to know its keys.
func (g *group) mend(ctx context.Context, name, page string) error {
	lease, err := g.client.get(ctx, "get keys", name)
	switch {
	case err != nil:
		return err
	case lease == nil:
		return errPageDeleted
	case lease.Annotations[keysAnnotation] == page && lease.Labels[groupLabel] == g.client.group:
		return nil
	}
	r, err := readRecord(lease)
	if err != nil {
		return err
	}
	_, err = g.client.patch(ctx, "write keys", name, r, map[string]*string{keysAnnotation: &page}, nil)
	return err
}

// errPageDeleted says that a page is to be created again.
var errPageDeleted = errors.New("the Lease with the keys was deleted meanwhile")

func (g *group) pageName(digest string, page int) string {
	return fmt.Sprintf("%s-k-%s-%d", g.client.group, digest, page)
}

// names returns the keys with a digest. Pages that were read before a request failed are not read again.
func (g *group) names(ctx context.Context, digest string) ([]string, error) {
	g.mu.Lock()
	keys, ok := g.sets.byDigest[digest]
	pages := slices.Clip(g.sets.pages[digest])
	g.mu.Unlock()
	if ok || digest == shards.Digest(nil) {
		return keys, nil
	}
	if !shards.IsDigest(digest) {
		return nil, errKeysMissing
	}
	had := len(pages)
	var failed error // of a request
	keys, err := shards.ReadPages(digest, func(page int) (string, error) {
		if page < len(pages) {
			return pages[page], nil
		}
		var lease *coordinationv1.Lease
		if lease, failed = g.client.get(ctx, "get keys", g.pageName(digest, page)); failed != nil || lease == nil {
			return "", errKeysMissing
		}
		pages = append(pages, lease.Annotations[keysAnnotation])
		return pages[page], nil
	})
	if failed != nil {
		g.keepPages(digest, pages)
		return nil, failed
	}
	if err != nil {
		g.keepPages(digest, nil)
		if had > 0 {
			return nil, fmt.Errorf("pages of keys have changed: %w", err) // the next try reads all of them
		}
		g.campaign.log.debug("a set of keys cannot be read", "digest", digest, "error", err)
		return nil, errKeysMissing
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.sets.pages, digest)
	return g.sets.addLocked(digest, keys), nil
}

// keepPages remembers the first pages of a set for the next time that it is read.
func (g *group) keepPages(digest string, pages []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sets.pages) >= maxSets {
		clear(g.sets.pages)
	}
	g.sets.pages[digest] = pages
}

// addLocked remembers a set of keys. It returns the one slice that is remembered for each digest. The caller holds the
// group's mu.
func (s *keySets) addLocked(digest string, keys []string) []string {
	if known, ok := s.byDigest[digest]; ok {
		return known
	}
	s.byDigest[digest] = keys
	return keys
}

var errKeysMissing = errors.New("the Leases with the keys do not exist, or cannot be read")

// maxSets is how many sets of keys a member remembers.
const maxSets = 32

// forgetSets forgets the sets of keys that used does not name, if there are many.
func (g *group) forgetSets(used map[string]bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sets.byDigest) <= maxSets {
		return
	}
	known := shards.Digest(g.sets.known)
	for digest := range g.sets.byDigest {
		if !used[digest] && digest != known {
			delete(g.sets.byDigest, digest)
		}
	}
}
