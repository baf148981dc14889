// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// Goal: where a chunk lies never changes. Method: values written down when the
// arithmetic was fixed; a failure here means that existing volumes become
// unreadable.
func TestPlaceOfAChunkIsFixed(t *testing.T) {
	set := &PGSet{Number: 3, Count: 256}
	v := &Volume{ID: 7, StripeWidth: 8}
	for _, c := range []struct {
		chunk uint64
		want  uint32
	}{{0, 193}, {1, 193 + 1}, {7, 193 + 7}, {8, 176}, {1 << 40, 118}} {
		if got := v.PG(set, c.chunk); got.Set() != 3 || got.Index() != c.want%256 {
			t.Errorf("chunk %d lies in group %d of set %d, want %d of 3", c.chunk, got.Index(), got.Set(),
				c.want%256)
		}
	}
}

// Goal: rows are scattered over the groups, the columns of a row lie side by
// side, and VolumePG agrees with PG without allocating.
func TestRowsAreScattered(t *testing.T) {
	set := &PGSet{Number: 1, Count: 512}
	m, err := NewMap().Apply(&Delta{Version: 1, Sets: []*PGSet{set}, PGs: table(1, 512)})
	if err != nil {
		t.Fatal(err)
	}
	v := &Volume{ID: 1, StripeWidth: 8, PGSet: 1}
	hits := make([]int, 512)
	const rows = 20000
	for row := range uint64(rows) {
		first := v.PG(set, row*8).Index()
		for column := range uint32(8) {
			chunk := row*8 + uint64(column)
			pg := v.PG(set, chunk)
			if pg.Index() != (first+column)%512 || m.VolumePG(v, chunk).ID != pg || m.PG(pg).ID != pg {
				t.Fatalf("row %d, column %d lies in group %d, its first chunk in %d", row, column,
					pg.Index(), first)
			}
		}
		hits[first]++
	}
	for g, n := range hits {
		if n < rows/512/3 || n > rows/512*3 {
			t.Errorf("%d of %d rows begin in group %d", n, rows, g)
		}
	}
	chunk := uint64(0)
	if n := testing.AllocsPerRun(1000, func() { chunk += uint64(m.VolumePG(v, chunk).Epoch) }); n != 0 {
		t.Errorf("VolumePG allocates %v times", n)
	}
	if m.VolumePG(&Volume{StripeWidth: 8, PGSet: 9}, 0) != nil || m.PG(MakePGID(1, 512)) != nil {
		t.Error("the map makes up groups")
	}
}

func table(set, count uint32) []*PG {
	var out []*PG
	for i := range count {
		out = append(out, &PG{ID: MakePGID(set, i), Epoch: 1, Replicas: []DeviceID{1, 2},
			InSync: []DeviceID{1, 2}})
	}
	return out
}

// Goal: applying a delta leaves the old map as it was and shares what stayed.
func TestApplyMakesANewMap(t *testing.T) {
	whole := &Delta{Cluster: UUID{1}, Version: 5, Devices: []*Device{{ID: 1}, {ID: 2}},
		Sets: []*PGSet{{Number: 1, Replicas: 2, Count: 4}}, PGs: table(1, 4),
		Volumes: []*Volume{{ID: 9, Name: "a", PGSet: 1}}, RemovedVolumes: []VolumeID{3}}
	old, err := NewMap().Apply(whole)
	if err != nil {
		t.Fatal(err)
	}
	next, err := old.Apply(&Delta{From: 5, Version: 8, Devices: []*Device{{ID: 2, Up: true}},
		RemovedDevices: []DeviceID{1}, PGs: []*PG{{ID: MakePGID(1, 2), Epoch: 2, InSync: []DeviceID{2}}},
		RemovedVolumes: []VolumeID{9}})
	if err != nil {
		t.Fatal(err)
	}
	if len(old.Devices) != 2 || old.Devices[2].Up || old.PG(MakePGID(1, 2)).Epoch != 1 ||
		old.VolumeByName("a") == nil || old.Removed[9] || old.Version != 5 {
		t.Error("the old map changed")
	}
	if len(next.Devices) != 1 || !next.Devices[2].Up || next.PG(MakePGID(1, 2)).Epoch != 2 ||
		next.VolumeByName("a") != nil || !next.Removed[9] || !next.Removed[3] || next.Version != 8 ||
		next.Cluster != (UUID{1}) {
		t.Errorf("the new map is %+v", next)
	}
	if next.PG(MakePGID(1, 1)) != old.PG(MakePGID(1, 1)) {
		t.Error("a group that did not change was copied")
	}
	if p := next.PG(MakePGID(1, 2)); !p.Has(2) || p.Has(1) || p.Member(0) || !p.Member(2) {
		t.Errorf("membership of %+v", p)
	}
}

// Goal: a delta that cannot be right is refused and changes nothing.
func TestApplyRefusesNonsense(t *testing.T) {
	m, err := NewMap().Apply(&Delta{Version: 5, Sets: []*PGSet{{Number: 1, Count: 4}}, PGs: table(1, 4)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(&Delta{From: 6, Version: 7}); !errors.Is(err, ErrGap) {
		t.Errorf("a gap gives %v", err)
	}
	for _, d := range []*Delta{
		{From: 5, Version: 4},
		{From: 5, Version: 6, PGs: []*PG{{ID: MakePGID(1, 4)}}},
		{From: 5, Version: 6, PGs: []*PG{{ID: MakePGID(2, 0)}}},
		{From: 5, Version: 6, Sets: []*PGSet{{Number: 2, Count: 3}}},
		{From: 5, Version: 6, Sets: []*PGSet{{Number: 2}}},
		{From: 5, Version: 6, Sets: []*PGSet{{Number: 2, Count: 1 << 30}}},
	} {
		if next, err := m.Apply(d); err == nil {
			t.Errorf("%+v gives %+v", d, next)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		text string
		want uint64
		back string
	}{
		{"0", 0, "0"}, {"4096", 4096, "4K"}, {"4097", 4097, "4.0K"}, {"64K", 64 << 10, "64K"},
		{"64k", 64 << 10, "64K"}, {"10G", 10 << 30, "10G"}, {" 10 GiB ", 10 << 30, "10G"},
		{"10GB", 10 << 30, "10G"}, {"512B", 512, "512"}, {"1.5T", 3 << 39, "1536G"}, {"0.5K", 512, "512"},
		{"15E", 15 << 60, "15E"}, {"1000000", 1000000, "976.6K"}, {"123456M", 123456 << 20, "120.6G"},
	} {
		got, err := ParseSize(c.text)
		if err != nil || got != c.want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", c.text, got, err, c.want)
		}
		if s := FormatSize(got); s != c.back {
			t.Errorf("FormatSize(%d) = %q, want %q", got, s, c.back)
		}
	}
	for _, text := range []string{"", "K", "G", "-1", "+1", "1q", "1KK", "0x10", "1e3", "16E", "20E",
		"99999999999999999999", "1.5", "0.3K", "1 0", "iB", "1i", "1iB", "NaN", "Inf", "1_000", "..1"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d", text, n)
		}
	}
}

// Goal: what FormatSize writes exactly, ParseSize reads back.
func TestSizesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(1, 1023).Draw(t, "n") << (10 * rapid.IntRange(0, 4).Draw(t, "unit"))
		text := FormatSize(n)
		if got, err := ParseSize(text); err != nil || got != n {
			t.Fatalf("%d is written %q and read as %d, %v", n, text, got, err)
		}
	})
}

func TestUUIDs(t *testing.T) {
	u := UUID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 15: 1}
	if s := u.String(); s != "01234567-89ab-cdef-0000-000000000001" {
		t.Errorf("String gives %s", s)
	}
	text, err := json.Marshal(u)
	var back UUID
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil || !reflect.DeepEqual(back, u) || u.IsZero() || !(UUID{}).IsZero() {
		t.Errorf("%s becomes %v, %v", text, back, err)
	}
	for _, s := range []string{"", "0123", "01234567-89ab-cdef-0000-00000000000x",
		"0123456789abcdef0000000000000001"} {
		if u, err := ParseUUID(s); err == nil {
			t.Errorf("ParseUUID(%q) = %v", s, u)
		}
	}
}
