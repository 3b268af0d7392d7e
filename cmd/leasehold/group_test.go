package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// groupStory returns the changes of a group of four keys within 100 seconds: x has them, y joins, x crashes, y returns
// a key and gets it again, z joins and y leaves.
func groupStory() []change {
	const uuid = "_3e096a27-af50-4e65-9c1d-000000000001"
	began := now.Add(-time.Minute)
	at := func(second float64, key, status, holder, cause string) change {
		c := change{Time: now.Add(time.Duration(second * float64(time.Second))), Namespace: "default", Name: "tenants",
			Group: "tenants", Key: key, Status: status, Holder: holder, Cause: cause}
		if holder != "" {
			c.Holder += uuid
		}
		return c
	}
	member := func(second float64, status, holder string) change {
		c := change{Time: now.Add(time.Duration(second * float64(time.Second))), Namespace: "default",
			Name: "tenants-m-" + holder, Group: "tenants", Status: status}
		if status != free {
			since := began.Add(time.Duration(second) * time.Second)
			c.Holder, c.Since, c.DurationSeconds = holder+uuid, &since, 15
		}
		return c
	}
	return []change{
		member(0, held, "x"), at(0, "a", held, "x", ""), at(0, "b", held, "x", ""), at(0, "c", held, "x", ""),
		at(0, "<d>", held, "x", ""),
		member(10, held, "y"), at(15, "a", moving, "x", forBalance), at(15, "b", moving, "x", forBalance),
		at(15.2, "a", held, "y", ""), at(15.3, "b", held, "y", ""),
		member(40, expired, "x"), at(40, "c", expired, "x", ownerLost), at(40, "<d>", expired, "x", ownerLost),
		at(40.01, "c", held, "y", ""), at(40.02, "<d>", held, "y", ""), member(41, free, "x"),
		at(60, "a", free, "", workOver), at(62, "a", held, "y", ""),
		member(80, held, "z"), at(82, "a", held, "z", ownerLeft), at(82, "b", held, "z", ownerLeft),
		at(82, "c", held, "z", ownerLeft), at(82.5, "<d>", free, "", ownerLeft), at(84, "<d>", held, "z", ""),
		member(84, free, "y"), at(95, "a", missing, "", keyUnknown), at(97, "b", moving, "z", forBalance),
		at(99, "c", free, "", workOver),
		{Time: now.Add(100 * time.Second), Status: ended},
	}
}

func TestGroupTimeline(t *testing.T) {
	end := now.Add(100 * time.Second)
	golden(t, "timeline-group-80", timeline(groupStory(), now, end, 80, false))
	golden(t, "timeline-group-120-colour", timeline(append(story()[:10], groupStory()...), now, end, 120, true))
	golden(t, "timeline-group-narrow", timeline(groupStory(), now, end, 20, false))
}

func TestPrintGroupChange(t *testing.T) {
	var b bytes.Buffer
	for _, f := range []format{"table", "json", "name"} {
		for _, c := range groupStory()[4:7] {
			f.printChange(&b, c)
		}
	}
	golden(t, "watch-group", b.String())
}

// The page of a group says who owned how many keys and which, and why each move happened.
func TestGroupReport(t *testing.T) {
	page := pageOf(t, groupStory())
	golden(t, "report-group.html", page)
	for _, want := range []string{"4 keys, 3 members seen, 8 moves",
		"asked back for balance: 2 moves, in 300ms (median; 300ms at most)",
		"its owner&#39;s lease expired: 2 moves, in 20ms", "its owner left: 4 moves, in 0s (median; 1.5s at most)",
		"without an owner: 2 keys at a time at most, none for longer than 2s", "&lt;d&gt;",
		"moving now, for 3s at most: b", "without an owner now, for 1s at most: c"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, bad := range []string{"<d>", "http://", "https://", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
}

// A group of the library is observed: who owns what, each move with its cause, a crash when the lease expires, a member
// that leaves, work that returns, a table that cannot be read, and one that is deleted.
func TestObserveGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := leasetest.NewServer()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var changes []change
		eyes := server.Client("eyes")
		var log bytes.Buffer
		seen := make(chan error)
		go func() {
			s := selection{client: eyes, namespace: "default", group: "tenants", selector: groupLabel + "=tenants"}
			seen <- s.observe(ctx, &tool{log: slog.New(slog.NewTextHandler(&log, nil))}, func(e event) {
				changes = append(changes, e.change)
			})
		}()
		release := map[string]chan struct{}{}
		join := func(name string) (leave func()) {
			ctx, cancel := context.WithCancel(ctx)
			over, back := make(chan error), make(chan struct{})
			release[name] = back
			go func() {
				over <- leasehold.Spread(ctx, leasehold.Keys("a", "b", "c", "d"),
					func(s leasehold.Session, key string) error {
						select {
						case <-s.Done():
							time.Sleep(100 * time.Millisecond)
						case <-back:
						}
						return nil
					},
					leasehold.WithLease("tenants"), leasehold.WithNamespace("default"), leasehold.WithIdentity(name),
					leasehold.WithClient(server.Client(name)), leasehold.WithLogger(slog.New(slog.DiscardHandler)))
			}()
			return func() {
				cancel()
				<-over
			}
		}
		// next returns what happened to keys since it was called last: counts by status, owner and cause.
		shown := 0
		next := func(wait time.Duration) string {
			time.Sleep(wait)
			synctest.Wait()
			count := map[string]int{}
			var order []string
			for _, c := range changes[shown:] {
				if c.Key == "" {
					continue
				}
				what := strings.TrimSuffix(fmt.Sprintf("%s %s: %s", c.Status, c.Holder, c.Cause), ": ")
				if count[what]++; count[what] == 1 {
					order = append(order, what)
				}
			}
			shown = len(changes)
			for i, what := range order {
				order[i] = fmt.Sprint(count[what], " ", what)
			}
			return strings.Join(order, "; ")
		}
		want := func(wait time.Duration, what string) {
			t.Helper()
			if got := next(wait); got != what {
				t.Errorf("seen: %s\nwant: %s", got, what)
			}
		}
		leaveX := join("x")
		want(10*time.Second, "4 free ; 4 held x")
		leaveY := join("y")
		want(10*time.Second, "2 moving x: asked back for balance; 2 held y")
		server.Client("x").Partition(true)
		want(30*time.Second, "2 expired x: its owner's lease expired; 2 held y")
		server.Client("x").Partition(false)
		want(30*time.Second, "2 moving y: asked back for balance; 2 held x")
		release["x"] <- struct{}{}
		want(10*time.Second, "1 free : its work returned; 1 held x")
		leaveX()
		if got := next(10 * time.Second); !strings.Contains(got, ownerLeft) || strings.Contains(got, expired) {
			t.Errorf("seen after x has left: %s", got)
		}
		server.Client("y").Partition(true) // and nobody is left to fence it
		want(30*time.Second, "4 expired y: its owner's lease expired")
		server.Client("y").Partition(false)
		want(time.Minute, "4 held y")
		server.Edit("default", "tenants", func(l *coordinationv1.Lease) { l.Annotations[tableAnnotation] = "rubbish" })
		next(2 * time.Minute) // another table
		if !strings.Contains(log.String(), "the group's table cannot be read") {
			t.Errorf("the log: %s", log.String())
		}
		leaveY()
		next(time.Second)
		server.Delete("default", "tenants")
		want(time.Second, "4 missing : no member knows it any more")
		cancel()
		if err := <-seen; err != nil {
			t.Error(err)
		}
		var members []string
		for _, c := range changes {
			if c.Key == "" && c.Status == held && c.Since == nil {
				t.Errorf("no time for the member %+v", c)
			}
			if c.Key == "" {
				members = append(members, c.Status+" "+c.Holder)
			}
		}
		const story = "held x, held y, expired x, free , "
		if got := strings.Join(members, ", "); !strings.HasPrefix(got, story) {
			t.Errorf("members: %s\nwant: %s…", got, story)
		}
		time.Sleep(time.Minute) // for what the followers began
	})
}
