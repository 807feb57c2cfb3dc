"""What the fleet's kill test kills: `mmkd answer` of a config, in a process. python killed_fleet.py CONFIG"""

import sys

from mmkd.config.load import load_as
from mmkd.config.synthesis_schema import AnswerConfig
from mmkd.synthesis.answering import answer_records

answer_records(load_as(sys.argv[1], sys.argv[2:], AnswerConfig))
