package main

import (
	"context"
	"time"

	"github.com/leasehold-go/leasehold"
)

// share is all that a program needs to take part in sharing out keys; a member is this call and nothing more.
func share(ctx context.Context, work func(s leasehold.Session, feed string) error) error {
	return leasehold.Spread(ctx, leasehold.Keys(feeds...), work,
		leasehold.WithLease(groupName),
		leasehold.WithDuration(leaseDuration),
		leasehold.WithSettle(settle),
	)
}

const (
	groupName = "feeds"
	settle    = 2 * time.Second // for which a new member waits before keys move to it
)

var feeds = []string{
	"art", "books", "cars", "dance", "earth", "film", "games", "health",
	"ideas", "jazz", "kids", "law", "music", "news", "opera", "photos",
}
