package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// story is what happened to two leases within 100 seconds.
func story() []change {
	at := func(second int, name, status, holder string, transitions int32) change {
		c := change{now.Add(time.Duration(second) * time.Second), "default", name, status, holder, transitions, 0}
		if holder != "" {
			c.DurationSeconds = 15
		}
		return c
	}
	return []change{
		at(0, "reconciler", held, "reconciler-7d9f5c_3e096a27-af50-4e65", 4),
		at(0, "backup", free, "", 1),
		at(30, "reconciler", free, "", 4),
		at(32, "reconciler", held, "reconciler-b8x2k1_5a117c90-bd1f-4f7a", 5),
		at(40, "backup", held, "<script>alert(1)</script>", 2),
		at(60, "reconciler", expired, "reconciler-b8x2k1_5a117c90-bd1f-4f7a", 5),
		at(70, "reconciler", held, "reconciler-7d9f5c_3e096a27-af50-4e65", 6),
		at(95, "backup", missing, "", 2),
		{Time: now.Add(100 * time.Second), Status: ended},
	}
}

func TestTimeline(t *testing.T) {
	end := now.Add(100 * time.Second)
	golden(t, "timeline-80", timeline(story(), now, end, 80, false))
	golden(t, "timeline-120-colour", timeline(story(), now, end, 120, true))
	golden(t, "timeline-narrow", timeline(story(), now, end, 20, false))
	golden(t, "timeline-later", timeline(story()[:8], now, now.Add(11*time.Minute), 80, false))
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

// A page says who led, when and for how long, and quotes what the Leases say.
func TestReport(t *testing.T) {
	var recording bytes.Buffer
	for _, c := range story() {
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
	golden(t, "report.html", out.String())
	for _, want := range []string{"3 terms", "without a leader for 12s</span>, at most 10s at a time", "&lt;script&gt;"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, bad := range []string{"<script", "http://", "https://", "ZgotmplZ"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("the page contains %q", bad)
		}
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
		opts := []leasehold.Option{leasehold.WithLease("job"), leasehold.WithNamespace("default"), leasehold.WithLogger(slog.New(slog.DiscardHandler))}
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
