package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/leasehold-go/leasehold"
)

func TestPrintShares(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	share := leasehold.Share{
		Owners:  map[string]string{"0": "a", "1": "a", "10": "b", "2": "a\x1b"},
		Unowned: []string{"3", "4"},
		Moving:  []string{"0", "10"},
		Members: []leasehold.Member{
			{Identity: "a", Weight: 2, Keys: 2, Since: now.Add(-time.Hour)},
			{Identity: "b", Keys: 1, Since: now.Add(time.Second)},
			{Identity: "a\x1b", Weight: 1, Keys: 1, Since: now.Add(-26 * time.Hour)},
		},
	}
	var b bytes.Buffer
	for _, p := range []sharesPrinter{
		{"table", false, false}, {"table", true, true}, {"json", false, false}, {"json", true, false},
		{"yaml", true, false},
	} {
		if err := p.print(&b, "tenants", share, now); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []sharesPrinter{{"table", true, false}, {"json", true, false}} {
		if err := p.print(&b, "tenants", leasehold.Share{}, now); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "shares", b.String())
}
