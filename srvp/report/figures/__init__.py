"""Figures of predictions, metrics, states and training: one look, the same bytes every time.

Every function returns a matplotlib figure. A notebook shows it as the last line of a cell, or by
`display`; `save` writes it as PNG and PDF. No figure is made by pyplot, which would keep it in
memory until the cell ends.

    style.py      colours, sizes and fonts; how a figure is written
    frames.py     frames of videos
    curves.py     metrics frame by frame, and training
    intervals.py  metrics with their intervals: the table, the options of prediction
    forecasts.py  what all samples are worth together
    states.py     the states of SRVP
    keypoints.py  the keypoints of StructVRNN
    readings.py   what states know of simulated videos
"""

from srvp.report.figures.curves import metric_curves as metric_curves
from srvp.report.figures.curves import training_curves as training_curves
from srvp.report.figures.forecasts import best_of as best_of
from srvp.report.figures.forecasts import digit_tracks as digit_tracks
from srvp.report.figures.forecasts import reliability as reliability
from srvp.report.figures.forecasts import spread_and_error as spread_and_error
from srvp.report.figures.frames import diversity_maps as diversity_maps
from srvp.report.figures.frames import frame_rates as frame_rates
from srvp.report.figures.frames import futures as futures
from srvp.report.figures.frames import sample_grid as sample_grid
from srvp.report.figures.frames import spread as spread
from srvp.report.figures.frames import to_bytes as to_bytes
from srvp.report.figures.intervals import prediction_options as prediction_options
from srvp.report.figures.intervals import results_table as results_table
from srvp.report.figures.keypoints import distance_to_nearest as distance_to_nearest
from srvp.report.figures.keypoints import keypoint_grid as keypoint_grid
from srvp.report.figures.keypoints import keypoint_trajectories as keypoint_trajectories
from srvp.report.figures.readings import over_time as over_time
from srvp.report.figures.readings import readings as readings
from srvp.report.figures.states import generative_model as generative_model
from srvp.report.figures.states import residual_norms as residual_norms
from srvp.report.figures.states import trajectories as trajectories
from srvp.report.figures.style import save as save
from srvp.report.figures.style import use_style as use_style
