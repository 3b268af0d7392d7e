package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// story returns the changes of two leases within 100 seconds.
func story() []change {
	at := func(second int, name, status, holder string, transitions int32) change {
		c := change{Time: now.Add(time.Duration(second) * time.Second), Namespace: "default", Name: name,
			Status: status, Holder: holder, Transitions: transitions}
		if holder != "" {
			c.DurationSeconds = 15
		}
		return c
	}
	const (
		pod   = "reconciler-7d9f5c-x2k4z"
		other = "reconciler-7d9f5c-b8x2k"
	)
	uuid := func(n int) string { return fmt.Sprintf("_3e096a27-af50-4e65-9c1d-%012d", n) }
	return []change{
		at(0, "reconciler", held, pod+uuid(1), 4),
		at(0, "backup", free, "", 1),
		at(30, "reconciler", free, "", 4),
		at(32, "reconciler", held, other+uuid(2), 5),
		at(40, "backup", held, "<script>alert(1)</script>", 2),
		at(60, "reconciler", expired, other+uuid(2), 5),
		at(70, "reconciler", held, pod+uuid(3), 6), // the pod's process has restarted
		at(90, "reconciler", free, "", 6),
		at(92, "reconciler", held, pod+uuid(4), 7),
		at(95, "backup", missing, "", 2),
		{Time: now.Add(100 * time.Second), Status: ended},
	}
}

// A holder keeps its lane when its process restarts, and only then.
func TestCandidate(t *testing.T) {
	for holder, want := range map[string]string{
		"reconciler-7d9f5c-x2k4z_3e096a27-af50-4e65-9c1d-0123456789ab": "reconciler-7d9f5c-x2k4z",
		"node-7_1d4f": "node-7_1d4f", "me": "me", "": "",
		"_3e096a27-af50-4e65-9c1d-0123456789ab": "_3e096a27-af50-4e65-9c1d-0123456789ab",
	} {
		if got := candidate(holder); got != want {
			t.Errorf("%q: %q, want %q", holder, got, want)
		}
	}
}

// Why each change happened, and what hand-overs there were.
func TestReasons(t *testing.T) {
	type seen struct {
		status, holder string
		transitions    int32
		duration       int32
	}
	var changes []change
	want := ""
	for i, c := range []struct {
		seen
		reason string
	}{
		{seen{missing, "", 0, 0}, "first seen"},
		{seen{free, "", 0, 0}, "created"},
		{seen{held, "a", 1, 15}, "acquired"},
		{seen{held, "a", 1, 30}, "duration changed from 15s to 30s"},
		{seen{expired, "a", 1, 30}, "not renewed for 30s"},
		{seen{held, "a", 1, 30}, "renewed again"},
		{seen{held, "b", 2, 30}, "taken over while it was held"},
		{seen{expired, "b", 2, 30}, "not renewed for 30s"},
		{seen{held, "c", 3, 30}, "taken over after the expiry"},
		{seen{missing, "", 3, 0}, "deleted"},
		{seen{held, "d", 0, 30}, "created"},
		{seen{free, "", 0, 0}, "released"},
		{seen{held, "d", 1, 30}, "acquired"},
		{seen{held, "d", 2, 30}, "acquired"}, // too fast to be seen free
	} {
		changes = append(changes, change{Time: now.Add(time.Duration(i) * time.Second), Namespace: "default",
			Name: "job", Status: c.status, Holder: c.holder, Transitions: c.transitions, DurationSeconds: c.duration})
		want += c.reason + "\n"
	}
	h := histories(changes, now.Add(14*time.Second))[0]
	got := ""
	for _, s := range h.Spans {
		got += s.Reason + "\n"
	}
	if got != want {
		t.Errorf("reasons:\n%swant:\n%s", got, want)
	}
	facts := "duration 30s, 6 terms, free for 2s, expired for 2s, missing for 2s\n" +
		"hand-overs: 1 released, in 1s; 1 expired, in 1s; 1 deleted, in 1s; 1 taken over"
	if got := strings.Join(h.facts(), "\n"); got != facts {
		t.Errorf("facts:\n%s\nwant:\n%s", got, facts)
	}
}

func TestTimeline(t *testing.T) {
	end := now.Add(100 * time.Second)
	golden(t, "timeline-80", timeline(story(), now, end, 80, false))
	golden(t, "timeline-120-colour", timeline(story(), now, end, 120, true))
	golden(t, "timeline-narrow", timeline(story(), now, end, 20, false))
	golden(t, "timeline-later", timeline(story()[:10], now, now.Add(11*time.Minute), 80, false))
	golden(t, "timeline-empty", timeline(nil, now, end, 80, false))
}

func TestPrintChange(t *testing.T) {
	for _, f := range []format{"table", "json", "yaml", "name"} {
		var b bytes.Buffer
		if f == "table" {
			b.WriteString(changeHeader + "\n")
		}
		for _, c := range story()[:4] {
			f.printChange(&b, c)
		}
		golden(t, "watch."+string(f), b.String())
	}
}

// pageOf returns the page that report makes of changes that were recorded.
func pageOf(t *testing.T, changes []change) string {
	t.Helper()
	var recording bytes.Buffer
	for _, c := range changes {
		line, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&recording, "%s\n", line)
	}
	var out, stderr bytes.Buffer
	tool := &tool{name: "leasehold", in: &recording, out: &out, err: &stderr}
	if code := tool.main([]string{"report", "--from", "-", "--html", "-"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	return out.String()
}

// A page says who led, when, for how long and why, and escapes what the Leases contain.
func TestReport(t *testing.T) {
	page := pageOf(t, story())
	golden(t, "report.html", page)
	for _, want := range []string{"duration 15s, 4 terms, free for 4s, expired for 10s",
		"hand-overs: 2 released, in 2s (median; 2s at most); 1 expired, in 10s",
		"without a leader for 14s</span>, at most 10s at a time", "&lt;script&gt;", "not renewed for 15s",
		"taken over after the expiry",
		"<span>reconcile</span><span>r-7d9f5c-x2k4z</span>"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, bad := range []string{"<script", "http://", "https://", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
}

// A page that cannot be written costs no watch, and an older page stays until there is a new one.
func TestReportFile(t *testing.T) {
	dir := t.TempDir()
	code, _, stderr := call(t, "report", "job", "--html", filepath.Join(dir, "missing", "page.html"))
	if code != 1 || !strings.Contains(stderr, "no such file or directory") {
		t.Errorf("exit code %d: %s", code, stderr) // and not that there is no API server
	}
	older, fresh := filepath.Join(dir, "older.html"), filepath.Join(dir, "fresh.html")
	if err := os.WriteFile(older, []byte("older"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{older, fresh} {
		if code, _, stderr := call(t, "report", "job", "--html", path); code != 1 ||
			!strings.Contains(stderr, "no API server") {
			t.Errorf("exit code %d: %s", code, stderr)
		}
	}
	if text, err := os.ReadFile(older); string(text) != "older" {
		t.Errorf("the older page: %q, %v", text, err)
	}
	if _, err := os.Stat(fresh); err == nil {
		t.Error("a page was left that nobody asked for")
	}
}

func TestReadRecording(t *testing.T) {
	for text, want := range map[string]string{
		"":          "nothing recorded",
		"{}\n":      "-, line 1: want the time and the status of a lease",
		"{\"time\"": "-, line 1: unexpected end of JSON input",
	} {
		_, err := (&tool{in: strings.NewReader(text)}).readRecording("-")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Observed over a Lease's life: renewals are no changes, a holder that stops renewing is one after its duration, and
// nothing is missed when the API server is away for a while.
func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := leasetest.NewServer()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		began := time.Now()
		var got []string
		done := make(chan error)
		eyes := server.Client("eyes")
		go func() {
			s := selection{client: eyes, namespace: "default", names: []string{"job"}}
			done <- s.observe(ctx, &tool{log: slog.New(slog.DiscardHandler)}, func(c event) {
				got = append(got, fmt.Sprint(c.Status, " ", c.Holder, " ", c.Time.Sub(began).Round(time.Second)))
			})
		}()
		synctest.Wait()
		time.Sleep(time.Second)
		hand := server.Client("a")
		opts := []leasehold.Option{leasehold.WithLease("job"), leasehold.WithNamespace("default"),
			leasehold.WithLogger(slog.New(slog.DiscardHandler))}
		a, err := leasehold.Acquire(ctx, append(opts, leasehold.WithClient(hand), leasehold.WithIdentity("a"))...)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		a.Release()
		time.Sleep(time.Second)
		hand = server.Client("b")
		b, err := leasehold.Acquire(ctx, append(opts, leasehold.WithClient(hand), leasehold.WithIdentity("b"))...)
		if err != nil {
			t.Fatal(err)
		}
		hand.Partition(true)
		time.Sleep(59 * time.Second)
		eyes.Partition(true)
		server.Delete("default", "job")
		time.Sleep(59 * time.Second)
		eyes.Partition(false)
		time.Sleep(time.Minute)
		hand.Partition(false)
		b.Release()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := "missing  0s, held a 1s, free  1m0s, held b 1m1s, expired b 1m16s, missing  2m59s"
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("seen: %s\nwant: %s", s, want)
		}
		time.Sleep(time.Minute) // for what the followers began
	})
}
